"""The SACFAST_* switches. Apart from the rest of the package, because setup.py reads one before torch is there."""

import os


def environment_flag(name: str) -> bool:
    """Whether SACFAST_<name> is set to something other than 0, false or no."""
    return os.environ.get(f"SACFAST_{name}", "").lower() not in ("", "0", "false", "no")
