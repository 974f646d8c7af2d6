"""Code that makes known what a picture's settings use of the user's own: schedules, solvers and spacings."""

import inspect
import textwrap

from spherear.sampling.settings import TABLES, SamplingSettings

NOTEBOOK = "__main__"  # the module of what a cell defines
IMPORTS = {
    "schedule": "from spherear.sampling.settings import SCHEDULES",
    "solver": "from spherear.sampling.solvers import SOLVERS",
    "spacing": "from spherear.sampling.solvers import SPACINGS",
}


def definitions(settings: SamplingSettings) -> list[str]:
    """Lines of Python: an import of the module that registered a part, or its definition from the notebook's cell.

    What a definition takes from elsewhere in the notebook is not among them; for a part without source, a comment.
    """
    lines: list[str] = []
    for field, name in settings.to_dict().items():
        if field in TABLES and name in TABLES[field].modules:
            module = TABLES[field].modules[name]
            lines += _source(field, name) if module == NOTEBOOK else [f"import {module}  # registers {name}"]
    return list(dict.fromkeys(lines))


def _source(field: str, name: str) -> list[str]:
    part = TABLES[field][name]
    try:
        source = textwrap.dedent(inspect.getsource(part)).rstrip()
    except (OSError, TypeError):
        return [f"# register the {field} {name!r} first, as the notebook does"]
    table = IMPORTS[field].split()[-1]
    registered = [] if f"{table}.register" in source else [f"{table}.register({part.__name__}, {name!r})"]
    return [IMPORTS[field], "", source, *registered, ""]
