"""When images are built, kept and cleaned away; programs that only write down how they are called stand in for buildah.

The stand-ins keep names as empty files in the storage's folder and let the product's own layout be filled, so what is
decided here is decided by the same files as with the real programs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import kaito_local
from kaito_local.errors import BuildError
from kaito_local.images.build import Builder, Image, Run
from kaito_local.images.publish import Registry, publish

_UNSHARE = """#!/bin/sh
# unshare OPTION... sh -ec SCRIPT FOLDER COMMAND...: runs the command, without namespaces and without the mount.
while [ "$1" != sh ]; do shift; done
shift 4
exec "$@"
"""

_BUILDAH = """#!/bin/sh
# buildah --root=STORAGE --runroot=FOLDER VERB ...
desk=$(dirname "$0")/..
storage=${1#--root=}
shift 2
echo "buildah $*" >> "$desk/calls"
if [ -e "$desk/$1.fails" ]; then cat "$desk/$1.fails" >&2; exit 125; fi
case "$1" in
  bud)
    mkdir -p "$storage"
    for word; do case "$word" in
      --tag=localhost/*) : > "$storage/${word#--tag=localhost/}" ;;
      --output=type=local,dest=*) mkdir -p "${word#*dest=}"; : > "${word#*dest=}/made" ;;
    esac; done
    for context; do :; done
    ls "$context" > "$desk/context"
    ;;
  images)
    if [ -e "$desk/images.json" ]; then cat "$desk/images.json"; exit; fi
    separator=
    printf '['
    for file in "$storage"/*; do
      if [ -e "$file" ]; then printf '%s{"names": ["localhost/%s:latest"]}' "$separator" "${file##*/}"; separator=,; fi
    done
    printf ']'
    ;;
  rmi)
    for word; do case "$word" in localhost/*) rm "$storage/${word#localhost/}" ;; esac; done
    ;;
esac
"""

_SKOPEO = """#!/bin/sh
# skopeo copy OPTION... SOURCE TARGET
desk=$(dirname "$0")/..
echo "skopeo $*" >> "$desk/calls"
if [ -e "$desk/copy.fails" ]; then cat "$desk/copy.fails" >&2; exit 2; fi
for target; do :; done
case "$target" in oci:*)
  if [ ! -e "$desk/copy.does-nothing" ]; then exec "{python}" "$desk/pack.py" "$target"; fi ;;
esac
"""

_PACK = """
import sys
sys.path.insert(0, {package!r})
from pathlib import Path
from kaito_local.images.oci import Layout
_, folder, name = sys.argv[1].split(":")
Layout.open(Path(folder)).add_image(name, [], config={{"Env": [name]}})
"""


@dataclass(frozen=True)
class Desk:
    """A builder whose programs are stand-ins, and sources of images."""

    folder: Path

    @property
    def builder(self) -> Builder:
        return Builder(self.folder / "cache")

    def image(self, name: str, *, base: Image | None = None, text: str = "FROM x\n") -> Image:
        """One whose Dockerfile holds ``text``."""
        sources = self.folder / "sources" / name
        sources.mkdir(parents=True, exist_ok=True)
        (sources / "Dockerfile").write_text(text)
        return Image(name, sources / "Dockerfile", sources, reference=f"example.com/team/{name}:1", base=base)

    def calls(self, program: str = "") -> list[str]:
        """What was called since the last look."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        return [line for line in lines if line.startswith(program)]

    def fails(self, verb: str, words: str) -> None:
        """The program called with ``verb`` fails from here on with ``words`` on stderr."""
        (self.folder / f"{verb}.fails").write_text(words)

    def stored(self) -> set[str]:
        """What lies in buildah's storage."""
        return {path.name for path in self.builder.storage.glob("*")}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    package = str(Path(kaito_local.__file__).parents[1])
    programs = {
        "unshare": _UNSHARE,
        "buildah": _BUILDAH,
        "skopeo": _SKOPEO.replace("{python}", sys.executable),
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "pack.py").write_text(_PACK.format(package=package))
    for name, script in programs.items():
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Desk(tmp_path)


def built(calls: list[str]) -> list[str]:
    """The images, without their hashes, that were built by these calls."""
    tags = [word for call in calls for word in call.split() if word.startswith("--tag=localhost/")]
    return [tag.removeprefix("--tag=localhost/").rsplit("-", 1)[0] for tag in tags]


def sources(folder: Path) -> Image:
    """An image that copies two files, beside one that it does not copy."""
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM x\nCOPY a.txt code /opt/\n")
    (folder / "code").mkdir()
    for name in ("a.txt", "code/b.py", "notes.txt"):
        (folder / name).write_text(name)
    return Image("app", folder / "Dockerfile", folder, facts=("bookworm",), base=None)


def _append(name: str) -> Callable[[Image], Image]:
    def change(image: Image) -> Image:
        with (image.context / name).open("a") as file:
            file.write("# more\n")
        return image

    return change


def _add_file(image: Image) -> Image:
    (image.context / "code" / "c.py").write_text("c")
    return image


def _rename_file(image: Image) -> Image:
    (image.context / "code" / "b.py").rename(image.context / "code" / "d.py")
    return image


def _rebase(image: Image) -> Image:
    base = sources(image.context.with_name("base"))
    return dataclasses.replace(image, base=base)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_append("Dockerfile"), id="dockerfile"),
        pytest.param(_append("a.txt"), id="copied-file"),
        pytest.param(_append("code/b.py"), id="file-of-a-copied-folder"),
        pytest.param(_add_file, id="further-file-in-a-copied-folder"),
        pytest.param(_rename_file, id="name-of-a-copied-file"),
        pytest.param(lambda image: dataclasses.replace(image, facts=("trixie",)), id="facts"),
        pytest.param(lambda image: dataclasses.replace(image, variant="cu126"), id="variant"),
        pytest.param(lambda image: dataclasses.replace(image, labels=("a=b",)), id="labels"),
        pytest.param(_rebase, id="base"),
    ],
)
def test_an_image_has_another_name_when_anything_that_it_is_made_of_changes(
    tmp_path: Path, change: Callable[[Image], Image]
) -> None:
    image = sources(tmp_path / "app")
    before = image.built_name
    assert change(image).built_name != before


def test_a_change_of_the_base_is_a_change_of_what_stands_on_it(tmp_path: Path) -> None:
    base = sources(tmp_path / "base")
    image = dataclasses.replace(sources(tmp_path / "app"), base=dataclasses.replace(sources(tmp_path / "m"), base=base))
    before = image.built_name
    _append("a.txt")(base)
    assert image.built_name != before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: image, id="nothing"),
        pytest.param(_append("notes.txt"), id="file-that-is-not-copied"),
        pytest.param(lambda image: dataclasses.replace(image, reference="example.com/a:2"), id="reference"),
    ],
)
def test_an_image_keeps_its_name_when_it_would_be_the_same(tmp_path: Path, change: Callable[[Image], Image]) -> None:
    image = sources(tmp_path / "app")
    before = image.built_name
    assert before.startswith("app-")
    os.utime(image.context / "a.txt", (1, 1))
    assert change(image).built_name == before


def test_the_same_sources_in_another_folder_make_the_same_image(tmp_path: Path) -> None:
    assert sources(tmp_path / "here").built_name == sources(tmp_path / "there").built_name


def test_what_is_missing_is_built_after_its_base_and_told_by_reference(desk: Desk) -> None:
    base = desk.image("base")
    image = desk.image("app", base=base)
    assert desk.builder.missing([image]) == [image]
    digests = desk.builder.ensure([image])
    found = desk.builder.layout.find(image.built_name)
    assert found is not None
    assert digests == {"example.com/team/app:1": found.digest}
    calls = desk.calls("buildah bud")
    assert built(calls) == ["base", "app"]
    assert f"--build-arg=BASE=localhost/{base.built_name}" in calls[1].split()
    assert desk.builder.missing([image]) == []


def test_an_image_gets_its_labels(desk: Desk) -> None:
    image = dataclasses.replace(desk.image("app"), labels=("org.opencontainers.image.version=1",))
    desk.builder.ensure([image])
    [call] = desk.calls("buildah bud")
    assert "--label=org.opencontainers.image.version=1" in call.split()


def test_what_is_there_is_neither_built_nor_packed_again(desk: Desk) -> None:
    image = desk.image("app", base=desk.image("base"))
    first = desk.builder.ensure([image])
    desk.calls()
    assert desk.builder.ensure([image]) == first
    assert desk.calls() == []


def test_a_base_that_two_images_share_is_built_once(desk: Desk) -> None:
    base = desk.image("base")
    desk.builder.ensure([desk.image("one", base=base), desk.image("two", base=base)])
    assert built(desk.calls()) == ["base", "one", "two"]


def test_only_the_image_that_changed_is_built_again(desk: Desk) -> None:
    base = desk.image("base")
    kept = desk.image("kept", base=base)
    desk.builder.ensure([kept, desk.image("changed", base=base)])
    desk.calls()
    changed = desk.image("changed", base=base, text="FROM y\n")
    assert desk.builder.missing([kept, changed]) == [changed]
    desk.builder.ensure([kept, changed])
    assert built(desk.calls()) == ["changed"]


def test_an_image_that_was_built_but_not_packed_is_only_packed(desk: Desk) -> None:
    image = desk.image("app")
    desk.fails("copy", "no space left")
    with pytest.raises(BuildError, match="no space left"):
        desk.builder.ensure([image])
    (desk.folder / "copy.fails").unlink()
    desk.calls()
    desk.builder.ensure([image])
    calls = desk.calls()
    assert built(calls) == []
    assert [call.split()[0] for call in calls if "copy" in call] == ["skopeo"]


def test_a_build_that_fails_names_the_image_and_ends_with_the_programs_words(desk: Desk) -> None:
    desk.fails("bud", "STEP 1/1: RUN false\nerror: building at STEP 1\n")
    with pytest.raises(BuildError, match=r"(?s)image app failed \(buildah, exit 125\).*app\.log.*building at STEP 1"):
        desk.builder.ensure([desk.image("app")])
    assert desk.builder.missing([desk.image("app")]) == [desk.image("app")]


def test_a_build_without_a_network_says_so_in_one_line(desk: Desk) -> None:
    desk.fails("bud", "curl: (6) Could not resolve host: index.example.org\nerror: exit status 6\n")
    said = r"could not be reached \(.*index\.example\.org\); check the network"
    with pytest.raises(BuildError, match=said) as raised:
        desk.builder.ensure([desk.image("app")])
    assert "\n" not in str(raised.value)


def test_an_image_that_is_not_packed_in_spite_of_success_is_an_error(desk: Desk) -> None:
    (desk.folder / "copy.does-nothing").touch()
    with pytest.raises(BuildError, match="image app left nothing"):
        desk.builder.ensure([desk.image("app")])


def test_what_an_image_prepares_is_its_context_and_goes_after_the_build(desk: Desk) -> None:
    def prepare(context: Path, run: Run) -> None:
        run(["sh", "-c", 'echo root > "$0"/root.tar', str(context)])

    desk.builder.ensure([dataclasses.replace(desk.image("base"), prepare=prepare)])
    assert (desk.folder / "context").read_text().split() == ["root.tar"]
    assert list((desk.builder.folder / "context").iterdir()) == []


def test_the_files_of_an_image_are_put_into_a_folder_without_keeping_it(desk: Desk, tmp_path: Path) -> None:
    base = desk.image("base")
    desk.builder.extract(desk.image("model", base=base), tmp_path / "files")
    assert (tmp_path / "files" / "made").exists()
    assert desk.stored() == {base.built_name}
    assert desk.builder.layout.names() == []


def test_images_of_the_same_kinds_that_are_out_of_date_go_and_others_stay(desk: Desk) -> None:
    old_base, other = desk.image("base"), desk.image("other")
    old = desk.image("app", base=old_base)
    desk.builder.ensure([old, other])
    old_names = {old.built_name, old_base.built_name}
    base = desk.image("base", text="FROM y\n")
    image = desk.image("app", base=base)
    desk.builder.ensure([image])
    assert old_names < desk.stored()

    desk.builder.clean([image])
    assert desk.stored() == {base.built_name, image.built_name, other.built_name}
    assert set(desk.builder.layout.names()) == {image.built_name, other.built_name}
    assert desk.builder.missing([image, other]) == []


def test_one_variant_of_an_image_is_another_kind_than_the_next(desk: Desk) -> None:
    cpu = dataclasses.replace(desk.image("app"), variant="cpu")
    gpu = dataclasses.replace(desk.image("app"), variant="cu126")
    desk.builder.ensure([cpu, gpu])
    desk.builder.clean([gpu])
    assert desk.stored() == {cpu.built_name, gpu.built_name}
    assert desk.builder.missing([cpu, gpu]) == []


def test_where_nothing_is_out_of_date_nothing_is_removed(desk: Desk) -> None:
    image = desk.image("app", base=desk.image("base"))
    desk.builder.ensure([image])
    desk.calls()
    desk.builder.clean([image])
    assert [call for call in desk.calls() if "rmi" in call] == []


def test_cleaning_a_cache_in_which_nothing_was_built_does_nothing(desk: Desk) -> None:
    desk.builder.clean([desk.image("app")])
    assert desk.calls() == []


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        pytest.param("[]", set(), id="none"),
        pytest.param("null", set(), id="null"),
        pytest.param([{"names": None}, {"id": "0a"}], set(), id="layers-without-a-name"),
        pytest.param([{"names": ["localhost/a-0:latest", "localhost/b-1:latest"]}], {"a-0", "b-1"}, id="two-names"),
        pytest.param([{"names": ["localhost/a-0:latest"]}, {"names": ["localhost/b-1"]}], {"a-0", "b-1"}, id="two"),
    ],
)
def test_the_storage_is_read_as_buildah_lists_it(desk: Desk, listed: object, names: set[str]) -> None:
    desk.builder.storage.mkdir(parents=True)
    (desk.folder / "images.json").write_text(listed if isinstance(listed, str) else json.dumps(listed))
    assert desk.builder._stored() == names


def test_a_storage_that_buildah_cannot_read_is_an_error_in_its_words(desk: Desk) -> None:
    desk.builder.storage.mkdir(parents=True)
    desk.fails("images", "Error: database is locked\n")
    with pytest.raises(BuildError, match=r"cannot read .*storage: Error: database is locked$"):
        desk.builder._stored()


def test_a_build_begins_without_what_interrupted_ones_left_but_with_pips_downloads(desk: Desk) -> None:
    image = desk.image("app")
    desk.builder.ensure([image])
    folder, layout = desk.builder.folder, desk.builder.layout.folder
    blobs = {path.name for path in (layout / "blobs" / "sha256").iterdir()}
    gone = [folder / "tmp/buildah1/rootfs/x", folder / "tmp/file", folder / "context/base/root.tar"]
    gone += [layout / "oci-put-blob1", layout / ".incoming-1"]
    kept = [folder / "tmp/buildah-cache-0/pip/wheel", folder / "log/app.log"]
    for path in (*gone, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    desk.calls()

    desk.builder._remove_leftovers()
    assert not any(path.exists() for path in (*gone, folder / "tmp/buildah1", folder / "context"))
    assert all(path.exists() for path in kept)
    assert {path.name for path in (layout / "blobs" / "sha256").iterdir()} == blobs
    assert desk.calls() == ["buildah rm --all"]
    assert desk.builder.missing([image]) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trying again\nFATA[0000] authentication required\n", r"FATA\[0000\] authentication required$"),
        ("", r"skopeo.*exit 2"),
        ("\n", r"skopeo.*exit 2"),
    ],
    ids=["last-line", "silence", "empty-line"],
)
def test_a_push_that_fails_names_the_target_and_why(desk: Desk, words: str, said: str) -> None:
    desk.fails("copy", words)
    with pytest.raises(BuildError, match=rf"cannot push registry\.example\.com/one:1: {said}"):
        publish(desk.builder, [desk.image("one"), desk.image("two")], Registry("registry.example.com"), programs={})
    assert len(desk.calls("skopeo")) == 1
