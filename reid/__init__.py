"""What any re-identification code needs and a reader of the paper need not open.

cli          flags from a dataclass, and the user's mistakes in one line
checkpoints  what train.py writes, read and written
weights      a model that starts from published weights: PASS, DeiT, HAP, ALBEF
text         the BERT that reads the sentences, and its tokenizer
"""
