"""What pyproject.toml cannot say: the notebooks travel inside the package, so that `spherear lab` finds them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithNotebooks(build_py):
    """Copies notebooks/ and its figures beside the modules that it builds; an editable install uses them in place."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path in self._notebooks():
                target = Path(self.build_lib, "spherear", path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *map(str, self._notebooks())]

    def _notebooks(self) -> list[Path]:
        found = (p for p in Path("notebooks").rglob("*") if p.suffix in (".ipynb", ".png", ".md"))
        return sorted(p for p in found if not any(part.startswith(".") for part in p.parts))


setup(cmdclass={"build_py": WithNotebooks})
