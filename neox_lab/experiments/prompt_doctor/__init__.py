"""Prompts checked before they mislead.

    report = nl.check_prompts(model, clean, corrupted, (" Mary", " John"))
    report.ok                                           # False: look
    report.frame                                        # a row for each finding, with what to do

    items    what is checked: tokens of both prompts, and the answers
    padding  whether a function of the user's own reads padding
    checks   the table: a name, how bad it is, a function, what to do
    inside   the same checks as warnings of sweeps, paths and attribution
    report   the result
    doctor   what users call

All but ``doctor`` read tokens alone, and import nothing of the questions that call them.
"""
