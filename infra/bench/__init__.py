"""Every path measured beside its floor: ``python -m infra.bench``, which is what ``make bench`` runs.

A row of the table is data (`rows`), and how it is measured is a module of its own. A floor is the least that anybody
could do for the same effect, so a ratio means the same on every machine, and a busy one makes both sides slow.
"""
