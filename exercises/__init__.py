"""A course made from this code: functions to write, and a grader.

table.py   the exercises
code.py    functions of the code as text: blanked, exchanged
make.py    writes a hand-out
grade.py   grades what comes back
runner.py  the process that runs code of students
probes.py  what is called there; it knows no answers
checks.py  the answers, from the paper in loops, and what a wrong one says
answers.py what a probe answered, and how it is compared
listen.py  the figures of a model that a student trained

    python -m exercises make --out handout
    python -m exercises grade handout
"""
