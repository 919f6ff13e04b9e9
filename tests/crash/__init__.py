"""The crash test: thousands of signups over real processes that are killed, cut off and disturbed by a plan.

``python -m tests.crash --signups 1000 --seed 7``. What a seed replays is the plan: who is killed at which call, whose
answer is lost, what happens to whom meanwhile. Which process gets whom, and in what order, the scheduler decides.
"""
