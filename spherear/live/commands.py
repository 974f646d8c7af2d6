"""The commands of the notebooks and of the installation: `spherear lab | page | notebooks | docs | doctor`.

What a command needs is imported inside it, as in `spherear.cli`.
"""

import importlib.metadata
import os
import pkgutil
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from spherear import __version__
from spherear.console import import_library, require_installed
from spherear.models.config import require
from spherear.sampling.placement import Placement, Plan

LIBRARIES = ("torch", "numpy", "einops", "jaxtyping", "safetensors", "huggingface_hub", "scikit-learn", "pillow")
DOCS_PAGE = "spherear.html"  # of the package, in a reference
SHAPES, VISIT = "shapes-power_spherical", 0.5
"""The model of the page if none is named; GB of a visit without large weights."""
LAB = ("jupyterlab", "ipykernel", "ipywidgets", "anywidget", "matplotlib", "plotly")


Place = Annotated[Placement, tyro.conf.arg(name="")]
AUTO = Placement()


def lab(
    folder: tyro.conf.Positional[Path] = Path("spherear-notebooks"),
    ar: str = "",
    vae: str = "",
    port: int = 8888,
    browser: bool = True,
    place: Place = AUTO,
) -> int:
    """Open the notebooks in JupyterLab, on this machine alone: live panels beside the text.

    Notebooks are copied to the folder; what is there already is never overwritten. Ctrl-C ends it.

    Args:
        folder: Where your copies of the notebooks live.
        ar: A model of yours: a run's folder, a hub repository or a published file. A notebook with its guidance panel
            is added to the folder and opened.
        vae: The published file of its VAE, if it is not in that of the AR model.
        port: Of the server; the next free one if it is taken.
        browser: Open a browser. Without one, the address (with its token) is printed.
        place: Where and how the model of --ar runs.
    """
    _check_port(port)
    require(bool(ar) or place == AUTO, f"{place.sentence} is given without a model; expected --ar")
    for library in ("jupyterlab", "ipywidgets", "anywidget", "plotly", "matplotlib"):
        require_installed(library)
    from spherear.live.server import check_jupyter_folders, copy_notebooks, lab_command, model_notebook, run_lab

    check_jupyter_folders()
    plan = _plan(ar, vae, place)
    copied = copy_notebooks(folder)
    print(f"{folder}: {len(copied.new)} files copied, {len(copied.same)} there already")
    for path in copied.edited:
        print(f"{folder / path}: differs from the shipped one, and is left as it is")
    first = copied.first
    if plan is not None:
        first = model_notebook(folder, Path(ar).name.partition(".")[0] or "model", _panel_arguments(plan, place))
    return run_lab(lab_command(folder, first, port=port, browser=browser))


def page(
    ar: str = "",
    vae: str = "",
    port: int = 8866,
    host: str = "localhost",
    browser: bool = True,
    visits: int = 4,
    idle: int = 15,
    static: Path | None = None,
    place: Place = AUTO,
) -> int:
    """Show the guidance panel alone as a page without code, by Voila. Ctrl-C ends it.

    With --static, write another page instead, and end: the shipped models run in the browser of whoever opens it,
    without Python and without a network.

    Whoever opens the page has models and a process of their own on this machine, of about 0.5 GB with the shipped
    models. It ends half a minute
    after the page was closed, or when the page was not used for some minutes. Pictures they save are downloads of their
    browser; nothing is written here. The page needs no other host.

    Args:
        ar: A model of yours: a run's folder, a hub repository or a published file; by default the shipped shapes.
        vae: The published file of its VAE, if it is not in that of the AR model.
        port: Of the server.
        host: Who reaches it: localhost is this machine alone, 0.0.0.0 whoever knows the address and its token.
        browser: Open a browser. Without one, the address (with its token) is printed.
        visits: How many at once; further ones are refused, with the reason, until a place is free.
        idle: Minutes after which the process of an open page that is not used ends.
        static: A folder for a site of files alone, of about 20 MB, for any web server: a new folder, an empty one, or
            an earlier site, which is replaced. None of the other options goes with it.
        place: Where and how the model runs.
    """
    if static is not None:
        given = (ar, vae, port, host, browser, visits, idle, place) != ("", "", 8866, "localhost", True, 4, 15, AUTO)
        require(not given, "--static writes a page of the shipped models; expected no other option beside it")
        return _write_site(static)
    _check_port(port)
    for library in ("voila", "ipywidgets", "anywidget", "plotly", "matplotlib"):
        require_installed(library, "page")
    from spherear.live.server import check_jupyter_folders, page_command, run_lab

    check_jupyter_folders()
    plan = _plan(ar or ("" if place == AUTO and not vae else SHAPES), vae, place)
    options: dict[str, Any] = {"port": port, "host": host, "browser": browser, "visits": visits, "idle": idle}
    model = None if plan is None else _panel_arguments(plan, place)
    with tempfile.TemporaryDirectory() as folder:
        command = page_command(Path(folder), **options, model=model)
        weights = plan.memory / 1e9 if plan else 0.0
        print(f"at most {visits} visits at once, of about {VISIT + weights:.1f} GB each")
        return run_lab(command)


def _write_site(folder: Path) -> int:
    from spherear.live.site.build import write_site

    size = write_site(folder)
    print(f"{folder}: {size / 1e6:.1f} MB, the whole site; copy it to any web server, or show it from here:")
    print(f'python -m http.server --directory "{folder}"    (then open http://localhost:8000)')
    return 0


def _plan(ar: str, vae: str, place: Placement) -> Plan | None:
    """The plan for a model, said in one line; None without one. Errors as in `Plan.of`, before anything begins."""
    require(bool(ar) or not vae, f"vae is {vae!r} without an AR model; expected --ar")
    if not ar:
        return None
    from spherear.models.sources import source_of

    plan = Plan.of(source_of(ar, vae).absolute(), place)
    print(plan.sentence)
    return plan


def _panel_arguments(plan: Plan, place: Placement) -> dict[str, str]:
    """The arguments of a panel for that model."""
    vae = {"vae": plan.source.vae} if plan.source.vae else {}
    return {"ar": plan.source.name, **vae, **{k: v for k, v in place.to_dict().items() if v != "auto"}}


def _check_port(port: int) -> None:
    require(0 <= port < 2**16, f"port is {port}; expected 0 (any that is free) to 65535")


def notebooks(folder: Path = Path("notebooks"), refresh: bool = False, only: str = "") -> int:
    """Say what is wrong with the form of the notebooks, or run them and rewrite their outputs.

    Args:
        folder: Where they are.
        refresh: Run each from top to bottom, in the environment of the tests, and rewrite it.
        only: Part of a name: leave out the others.
    """
    require_installed("nbclient")
    from spherear.live import notebooks as books

    found = [path for path in books.find_notebooks(folder) if only in path.name]
    require(len(found) > 0, f"only is {only!r}; expected part of the name of a notebook in {folder}")
    wrong = 0
    for path in tqdm(found, "notebooks", unit="notebook", disable=not refresh):
        began = time.monotonic()
        if refresh:
            books.refresh(path)
            tqdm.write(f"{path} took {time.monotonic() - began:.0f} s")
        problems = books.problems(path)
        wrong += len(problems)
        tqdm.write("\n".join(f"{path} {problem}" for problem in problems or ["has no problems"]))
    return 1 if wrong else 0


def docs(out: Path = Path("runs/docs")) -> int:
    """Write the API reference as HTML: every public name with its signature, shapes and errors.

    Args:
        out: Folder of the pages; index.html is the first.
    """
    taken = out.exists() and any(out.iterdir()) and not (out / DOCS_PAGE).exists()
    require(not taken, f"{out} holds other files; expected a new folder, or one of an earlier reference")
    pdoc = import_library("pdoc", "docs", "the reference is made with it")
    importlib.import_module("pdoc.render").configure(docformat="markdown", search=True)
    package = importlib.import_module("spherear")
    wings = [module.name for module in pkgutil.iter_modules(package.__path__, "spherear.")]
    pdoc.pdoc("spherear", *wings, output_directory=out)
    print(out / "index.html")
    return 0


def doctor() -> int:
    """Print versions and devices, and say whether the lab (notebooks, widgets, figures) is ready."""
    import torch

    gib = shutil.disk_usage(".").free / 2**30
    print(f"spherear {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"CPU: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads; {gib:.0f} GiB free here")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"CUDA {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        print("CUDA: none, everything runs on the CPU")
    missing = [name for group in (LIBRARIES, LAB) for name in _print_versions(group)]
    lab = [name for name in missing if name in LAB]
    print("lab: ready" if not lab else f'lab: not ready, {", ".join(lab)} missing: pip install "spherear[lab]"')
    return 0 if set(missing) <= set(LAB) else 1


def _print_versions(names: Sequence[str]) -> list[str]:
    """Print the version of each library; return those that are missing."""
    missing = []
    for name in names:
        try:
            print(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name} missing")
            missing.append(name)
    return missing
