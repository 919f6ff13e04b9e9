"""The functions' settings as a doctor needs them: what is wrong with each, and the rest usable all the same.

The surprising thing: in the place of a setting that can't be used stands one that leads nowhere, so that everything
else can still be looked at. Nothing that needs it is asked.
"""

from __future__ import annotations

import base64
import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from functions.health.checks import Finding, broken, ok, warning
from functions.kit.counting import counted
from functions.kit.settings import Settings, SettingsInvalid, variable_names

# One is found out only when another is right: how long to keep a key depends on how long a lease is.
MAX_ROUNDS = 3
NOWHERE = {
    "SUPABASE_URL": "http://unset.invalid",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_unset-unset",
    "SUPABASE_SECRET_KEY": "sb_secret_unset-unset",
    "OPENROUTER_MANAGEMENT_KEY": "unset-unset",
    "DOORKEY_PROJECT": "unset",
    "DOORKEY_SEALING_KEYS": "unset:" + base64.b64encode(bytes(32)).decode(),
}
MENDS = {
    "SUPABASE_URL": "SUPABASE_URL=https://<project>.supabase.co   (dashboard, Project Settings, Data API)",
    "SUPABASE_PUBLISHABLE_KEY": "SUPABASE_PUBLISHABLE_KEY=sb_publishable_...   (dashboard, Project Settings, API Keys)",
    "SUPABASE_SECRET_KEY": "SUPABASE_SECRET_KEY=sb_secret_...   (dashboard, Project Settings, API Keys)",
    "OPENROUTER_MANAGEMENT_KEY": "OPENROUTER_MANAGEMENT_KEY=...   (https://openrouter.ai/settings/management-keys)",
    "DOORKEY_PROJECT": "DOORKEY_PROJECT=shop   (lower-case letters, digits and single hyphens)",
    "DOORKEY_SEALING_KEYS": "doorkey connect   (makes it; one that is there is in the functions' environment)",
    "DOORKEY_WEBHOOK_SECRETS": "doorkey connect   (makes them)",
}
NOTHING_SET = "None of the settings is given, and no doorkey dev runs on this machine."
WHERE_FROM = "doorkey doctor --stage STAGE   (or --env-file FILE, or start doorkey dev in another terminal)"


@dataclass(frozen=True, repr=False)
class Examined:
    """What the settings came to.

    Attributes:
        settings: with something harmless where one can't be used.
        problems: `NAME: what is wrong`, for each of those.
        unusable: their names.
    """

    settings: Settings
    problems: tuple[str, ...]
    unusable: frozenset[str]


def examine_settings(environment: Mapping[str, str]) -> Examined:
    """The settings in this environment, whatever is wrong with them."""
    usable, problems = dict(environment), list[str]()
    for _ in range(MAX_ROUNDS):
        try:
            settings = Settings.from_environment(usable)
        except SettingsInvalid as error:
            problems += error.problems
            for name in _names(error.problems):
                usable.pop(name, None)
                usable |= {name: NOWHERE[name]} if name in NOWHERE else {}
        else:
            return Examined(settings, tuple(problems), frozenset(_names(problems)))
    return Examined(Settings.from_environment(NOWHERE), tuple(problems), frozenset(variable_names()))


def judge_settings(environment: Mapping[str, str], examined: Examined, given: Mapping[str, str]) -> Finding:
    """The line about the settings; names only.

    Args:
        environment: of the functions.
        examined: what it came to.
        given: all variables of this process; one that is nearly called like a setting is a slip.
    """
    if not environment:
        return broken(NOTHING_SET, WHERE_FROM)
    if examined.problems:
        found = "; ".join(problem.replace(": ", " ", 1) for problem in examined.problems)
        mends = [MENDS.get(name, f"{name}=...   (docs/settings.md)") for name in _names(examined.problems)]
        return broken(f"{found}.", "\n".join(dict.fromkeys(mends)))
    slips = misspelt(given, environment)
    if slips:
        found = "; ".join(f"{slip} is no setting: is {meant} meant?" for slip, meant in slips.items())
        return warning(found, "docs/settings.md lists them all")
    given_ones = counted(len(environment), "setting is", "settings are")
    return ok(f"{given_ones} given and can be used; the others have their defaults.")


def misspelt(given: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that look like a setting of ours that isn't set, and which."""
    names = variable_names()
    unset = [name for name in names if name not in environment]
    near = {
        name: difflib.get_close_matches(name, unset, n=1, cutoff=0.85)
        for name in sorted(given)
        if name.startswith("DOORKEY_") and name not in names
    }
    return {name: match[0] for name, match in near.items() if match}


def _names(problems: list[str] | tuple[str, ...]) -> list[str]:
    return [problem.partition(":")[0] for problem in problems]
