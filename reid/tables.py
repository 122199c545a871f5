"""Tables as text."""


def format_table(rows):
    """Aligned text of rows (dicts), without "each". Floats are fractions and print as percent with
    one decimal."""
    def cell(value):
        return f"{100 * value:.1f}" if isinstance(value, float) else str(value)

    keys = dict.fromkeys(key for row in rows for key in row if key != "each")
    lines = [list(keys)]
    for row in rows:
        lines.append([cell(row.get(key, "")) for key in keys])

    columns = []
    for key, *cells in zip(*lines, strict=True):
        width = max(map(len, (key, *cells)))
        is_text = all(isinstance(row.get(key, ""), str) for row in rows)
        align = str.ljust if is_text else str.rjust
        columns.append([align(text, width) for text in (key, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
