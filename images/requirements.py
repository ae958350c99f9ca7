"""``requirements.py EXTRA FOLDER``: what an image installs, out of the project's pyproject.toml beside this file.

Writes FOLDER/requirements.txt with the packages of the extra, and FOLDER/kaito.dist-info, which is all that
importlib.metadata needs to know the version of a package that is copied into the image and not installed. A layer
that is made from these two files stays as it is when anything else in pyproject.toml changes.
"""

import sys
import tomllib
from pathlib import Path


def main(extra: str, folder: Path) -> None:
    """Extras that are part of the extra, such as ``kaito[torch]``, lie in the image that this one stands on."""
    with (Path(__file__).parent / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    names = [name for name in project["optional-dependencies"][extra] if not name.startswith(f"{project['name']}[")]
    information = folder / f"{project['name']}.dist-info"
    information.mkdir(parents=True)
    (folder / "requirements.txt").write_text("\n".join(names) + "\n")
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
