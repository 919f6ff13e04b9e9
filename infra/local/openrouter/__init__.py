"""A stand-in for OpenRouter's HTTP API, on one machine and without an account.

It is not a mock: it keeps keys, counts every nano-dollar and survives being killed. It earns its
place by passing the suite in tests/contract/openrouter, which also runs against the real thing.
"""
