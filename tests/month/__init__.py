"""A simulated month: hundreds of users, a clock that is moved, the real doors, the real sweep, OpenRouter's simulator.

At its end the drift report must name every difference, and ledger and OpenRouter must agree to the last fraction.
"""
