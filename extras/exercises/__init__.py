"""A course made from this code: functions to write, and a grader that runs the project's own tests.

table.py    the exercises
code.py     functions of the code as text: emptied for a hand-out, exchanged for grading
make.py     writes a hand-out
grade.py    grades what comes back
sandbox.py  copies of the code with a student's functions, and the process that tests them, child.py

    python -m extras.exercises make --out handout
    python -m extras.exercises grade handout
"""
