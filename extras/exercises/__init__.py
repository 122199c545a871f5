"""A course made from this code: functions to write, and a grader that runs the project's own tests.

table.py    the exercises
code.py     functions of the code as text: emptied for a hand-out, replaced for grading
make.py     writes a hand-out
grade.py    grades hand-outs
sandbox.py  tests a student's functions in copies of the code, in the process child.py

    python -m extras.exercises make --out handout
    python -m extras.exercises grade handout
"""
