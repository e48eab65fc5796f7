"""What a process that is measured finds compiled.

Packages that were installed bring their bytecode along, and a checkout may not be allowed to write any: whoever is
measured from there would be compiled at each start, and nobody else. So all of them keep their bytecode in one folder
of the benchmark's own, and each is started once before it is measured.
"""

import os
from pathlib import Path


def compiled_in(folder: Path) -> dict[str, str]:
    """The environment of this process, for others that write their bytecode to that folder."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder)}
