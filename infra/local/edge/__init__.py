"""The edge: the public address that stands where hosted Supabase's API gateway stands.

Behind it two processes of @supabase/lite serve the Data API and Auth; in front of it clients see
hosted's keys, tokens, answers and wordings. The surprising thing: Lite only knows HS256 and one
key of each kind, so every request is let in by this package and carries a freshly minted token
inwards; nothing a client sends as a credential reaches Lite.

`LITE_REPAIRS` is SQL for whoever sets up the database: see the file.

Facts: supabase.md 2, 3, 4, 9 and 11.
"""

from pathlib import Path

from infra.local.edge.app import create_app
from infra.local.edge.config import BadConfiguration, EdgeConfig, read_config
from infra.local.edge.control import CONTROL_HEADER
from infra.local.edge.keys import legacy_key

LITE_REPAIRS = Path(__file__).with_name("lite_repairs.sql")

__all__ = [
    "CONTROL_HEADER",
    "LITE_REPAIRS",
    "BadConfiguration",
    "EdgeConfig",
    "create_app",
    "legacy_key",
    "read_config",
]
