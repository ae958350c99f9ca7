"""The rules of the API once more, in Python: for clusters without the admission policies and objects older than them.

Each rule is a small function that yields problems; ids are those of the rules' table. Rules that need a ConfigMap are
not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kaito_hooks.api import labels, node_labels
from kaito_hooks.api.catalog import ENGINES, Catalog, Engine, InstanceType, Preset, fits, fits_tuning
from kaito_hooks.api.workspace import Adapter, DataDestination, DataSource, PresetSpec, Workspace
from kaito_hooks.workspace.rules import formats, pod_template, tolerations
from kaito_hooks.workspace.rules.engines import engine_of, serves
from kaito_hooks.workspace.rules.spelling import nearest

MAX_NAME = 52
MAX_ADAPTERS = 10
MAX_ADAPTER_NAME = 55
METHODS = ("lora", "qlora")
RESERVED_LABELS = frozenset(
    {
        labels.WORKSPACE,
        labels.WORKSPACE_NAMESPACE,
        labels.RAG_ENGINE,
        labels.MACHINE_TYPE,
        labels.PROVISIONER_NAME,
        labels.NODE_POOL,
        labels.CLAIM_UID,
    }
)

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_IMAGE = re.compile(r"(.+/[^:/]+):([^:/]+)")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule: its id, the field's path and the text that users know."""

    rule: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.message}: {self.path}"


def told(problems: Iterable[Problem]) -> str:
    """All of them in one sentence, so that nobody has to find the second after mending the first."""
    return "; ".join(map(str, problems))


def check(workspace: Workspace, catalog: Catalog | None, *, max_nodes: int) -> list[Problem]:
    """Every broken rule, in the order of the table; without a Catalog only those that need none.

    ``max_nodes``: of one Workspace. C41, of labels that no bought node can have, is told where a node is to be bought.
    """
    problems = [*_shape(workspace), *_resource(workspace, max_nodes), *_inference(workspace), *_tuning(workspace)]
    if catalog is not None:
        problems += [*_instance_type(workspace, catalog), *_presets(workspace, catalog)]
    return problems


def _shape(ws: Workspace) -> Iterator[Problem]:
    if ws.inference is None and ws.tuning is None:
        yield Problem("C1", "spec", "Either Inference or Tuning must be specified, not neither")
    if ws.inference is not None and ws.tuning is not None:
        yield Problem("C2", "spec", "Either Inference or Tuning must be specified, but not both")
    if not _DNS_1035.fullmatch(ws.name) or len(ws.name) > MAX_NAME:
        yield Problem(
            "C3",
            "metadata.name",
            f"{ws.name} must start with a letter, hold only a-z, 0-9 and -, not end with -, and have at most "
            f"{MAX_NAME} characters: a Service gets this name",
        )
    if not _knows_runtime(ws):
        value = ws.annotations[labels.RUNTIME]
        yield Problem(
            "C36", "metadata.annotations", f"The annotation {labels.RUNTIME} is '{value}'; use {' or '.join(ENGINES)}"
        )
    if (text := tolerations.problem(ws)) is not None:
        yield Problem(
            "C45",
            "metadata.annotations",
            f"The annotation {labels.TOLERATIONS} has '{formats.shown(text)}', which is no taint; {tolerations.WRONG}",
        )


def _knows_runtime(ws: Workspace) -> bool:
    return ws.annotations.get(labels.RUNTIME) in (None, *ENGINES)


def _resource(ws: Workspace, max_nodes: int) -> Iterator[Problem]:
    if ws.resource is None:
        return
    path = "resource.labelSelector"
    if ws.resource.selector_problem:
        yield Problem("C8", path, f"invalid value: {ws.resource.selector_problem}")
    for key in sorted(RESERVED_LABELS.intersection(ws.resource.match_labels)):
        yield Problem("C8", path, f"invalid value: the label {key} is KAITO's own, choose another one")
    for key, value in sorted(ws.resource.match_labels.items()):
        if not (node_labels.is_key(key) and node_labels.is_value(value)):
            label = f"{formats.shown(key)}={formats.shown(value)}"
            yield Problem(
                "C8",
                path,
                f"invalid value: no node can have the label {label}: both have at most 63 letters, "
                "digits, - _ and ., and begin and end with a letter or digit",
            )
    if ws.resource.count > max_nodes:
        yield Problem(
            "C38",
            "resource.count",
            f"invalid value: {ws.resource.count} nodes; one Workspace may have {max_nodes}, "
            "as the value maxNodesPerWorkspace of the chart kaito says",
        )
    if ws.tuning is not None and ws.resource.count > 1:
        yield Problem(
            "C9",
            "resource",
            "Tuning does not currently support multinode configurations. Please set the node count to 1. "
            "Future support with DeepSpeed will allow this.",
        )


def _inference(ws: Workspace) -> Iterator[Problem]:
    spec = ws.inference
    if spec is None:
        return
    if spec.preset is None and spec.template is None:
        yield Problem("C10", "inference", "missing field(s): Preset or Template must be specified")
    if spec.preset is not None and spec.template is not None:
        yield Problem("C11", "inference", "Preset and Template cannot be set at the same time")
    if spec.template is not None:
        yield from (Problem("C37", "inference.template", text) for text in pod_template.problems(spec.template))
    yield from _preset(spec.preset, "inference")
    yield from _adapters(spec.adapters)


def _preset(preset: PresetSpec | None, path: str) -> Iterator[Problem]:
    if preset is None:
        return
    if preset.access_mode == "private" and not preset.image:
        yield Problem("C14", path, "When AccessMode is private, an image must be provided in PresetOptions")
    yield from _reference(preset.image, path)
    yield from _secrets(preset.image_pull_secrets, path)


def _adapters(adapters: Sequence[Adapter]) -> Iterator[Problem]:
    path = "inference.adapters"
    if len(adapters) > MAX_ADAPTERS:
        yield Problem("C15", path, f"Number of Adapters exceeds the maximum limit, maximum of {MAX_ADAPTERS} allowed")
    names = [adapter.source.name for adapter in adapters]
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        yield Problem("C16", path, f"Duplicate adapter source name found: {name}")
    for adapter in adapters:
        yield from _adapter(adapter, path)


def _adapter(adapter: Adapter, path: str) -> Iterator[Problem]:
    name = adapter.source.name
    if not name:
        yield Problem("C17", path, "An adapter needs source.name")
    elif not _DNS_1123.fullmatch(name) or len(name) > MAX_ADAPTER_NAME:
        yield Problem(
            "C17",
            path,
            f"The adapter name {name} must be a DNS-1123 label of at most {MAX_ADAPTER_NAME} characters",
        )
    if not adapter.source.image:
        yield Problem("C18", path, "Image of Adapter field must be specified")
    if adapter.source.urls or adapter.source.volume_source is not None:
        yield Problem(
            "C47",
            path,
            f"invalid value: the adapter '{name}' comes from source.image alone; "
            "leave source.urls and source.volumeSource out",
        )
    yield from _reference(adapter.source.image, path)
    yield from _secrets(adapter.source.image_pull_secrets, path)
    if not _NUMBER.fullmatch(adapter.strength):
        yield Problem("C19", path, f"Invalid strength value for Adapter '{name}': {adapter.strength}")
    elif not 0.0 <= float(adapter.strength) <= 1.0:
        yield Problem("C20", path, f"Strength value for Adapter '{name}' must be between 0 and 1")


def _tuning(ws: Workspace) -> Iterator[Problem]:
    spec = ws.tuning
    if spec is None:
        return
    if spec.method not in METHODS:
        yield Problem("C21", "tuning", f"invalid value: '{spec.method}' is no tuning Method, use lora or qlora")
    for field, value in (("Preset", spec.preset), ("Input", spec.input), ("Output", spec.output)):
        if value is None:
            yield Problem("C22", "tuning", f"missing field(s): {field}")
    yield from _preset(spec.preset, "tuning")
    if spec.input is not None:
        yield from _tuning_input(spec.input)
    if spec.output is not None:
        yield from _tuning_output(spec.output, data=spec.input.image if spec.input else "")


def _tuning_input(source: DataSource) -> Iterator[Problem]:
    path = "tuning.input"
    if sum(map(bool, (source.urls, source.volume_source is not None, source.image))) != 1:
        yield Problem("C28", path, "Exactly one of URLs, Volume, or Image must be specified")
    if source.volume_source is not None:
        yield Problem("C29", path, "Volume support is not implemented yet")
    for url in source.urls:
        if not formats.is_download(url):
            yield Problem(
                "C39",
                f"{path}.urls",
                f"invalid value: {formats.shown_url(url)} is no http or https URL, without user and password, "
                f"that names a file{'; a blank in it is written %20' if ' ' in url else ''}",
            )
        elif formats.is_local(url):
            yield Problem(
                "C49",
                f"{path}.urls",
                f"invalid value: {formats.shown_url(url)} names the Pod that downloads it, not your machine; "
                "serve the data where Pods reach them",
            )
    yield from _image(source.image, path, "Invalid image format, require full input image URL")
    yield from _secrets(source.image_pull_secrets, path)


def _tuning_output(output: DataDestination, *, data: str) -> Iterator[Problem]:
    path = "tuning.output"
    if output.volume_source is not None:
        yield Problem("C29", path, "Volume support is not implemented yet")
    yield from _image(output.image, path, "Invalid image format, require full output image URL")
    if "@" in output.image:
        yield Problem(
            "C48",
            f"{path}.image",
            "invalid value: it names a digest, to which nothing can be pushed; write a tag instead",
        )
    elif output.image and output.image == data:
        yield Problem(
            "C48",
            f"{path}.image",
            f"invalid value: {formats.shown(data)} is the image that the data come from, and would be overwritten; "
            "write another tag",
        )
    yield from _secrets((output.image_push_secret,) if output.image_push_secret else (), path)
    if output.image and not output.image_push_secret:
        yield Problem("C32", path, "missing field(s): Must specify imagePushSecret with destination image")
    if not output.image and output.volume_source is None:
        yield Problem("C33", path, "missing field(s): At least one of Volume or Image must be specified")


def _image(image: str, path: str, invalid: str) -> Iterator[Problem]:
    if not image:
        return
    matched = _IMAGE.fullmatch(image)
    if matched is None:
        yield Problem("C30", path, invalid)
        return
    name = matched.group(1).rsplit("/", 1)[-1]
    if name != name.lower():
        yield Problem("C31", path, "Repository name must be lowercase")
    else:
        yield from _reference(image, path)


def _reference(image: str, path: str) -> Iterator[Problem]:
    if image and not formats.is_image(image):
        yield Problem(
            "C40",
            path,
            f"invalid value: {formats.shown(image)} is no image: "
            "write [registry/]repository[:tag][@digest] with a repository in lower case",
        )


def _secrets(names: Sequence[str], path: str) -> Iterator[Problem]:
    for name in names:
        if not formats.is_object_name(name):
            yield Problem(
                "C46",
                path,
                f"invalid value: '{formats.shown(name)}' is no name of a Secret: "
                "it has at most 253 small letters, digits, - and .",
            )


def _instance_type(ws: Workspace, catalog: Catalog) -> Iterator[Problem]:
    """C4 holds for templates and, with our own requirement for tuning (C25), for tuning too."""
    if ws.resource is None:
        if ws.inference is not None or ws.tuning is not None:
            yield Problem("C4", "resource", _unsupported("", catalog))
        return
    name = ws.resource.instance_type
    if catalog.find_instance_type(name) is None and not catalog.is_unchecked(name):
        yield Problem("C25" if ws.tuning else "C4", "resource", _unsupported(name, catalog))


def _unsupported(name: str, catalog: Catalog) -> str:
    given = f" {name}" if name else ": resource.instanceType names none"
    return f"Unsupported instance type{given}. Supported SKUs: {', '.join(sorted(catalog.on_sale))}"


def _presets(ws: Workspace, catalog: Catalog) -> Iterator[Problem]:
    wanted = ws.preset
    if wanted is None:
        return
    preset = catalog.presets.get(wanted.name)
    if preset is None:
        rule, what, path = ("C12", "inference", "inference") if ws.inference else ("C23", "tuning", "tuning")
        offered = sorted(name for name, other in catalog.presets.items() if ws.tuning is None or other.tuning)
        meant = nearest(wanted.name, offered) or "."
        yield Problem(
            rule,
            f"{path}.presetName",
            f"Unsupported {what} preset name {wanted.name}{meant} Supported presets: {', '.join(offered)}",
        )
        return
    if preset.access_mode == "private" and wanted.access_mode != "private":
        yield Problem(
            "C13",
            "inference" if ws.inference else "tuning",
            "This preset only supports private AccessMode, AccessMode must be private to continue",
        )
    listed = catalog.find_instance_type(ws.resource.instance_type) if ws.resource else None
    engine = engine_of(ws, catalog)
    checks_engine = serves(ws) and _knows_runtime(ws)
    if checks_engine and engine not in preset.engines:
        yield Problem(
            "C34",
            "tuning.presetName" if ws.tuning else "inference.presetName",
            f"Preset {preset.name} is not served by the engine {engine}; "
            f"set the annotation {labels.RUNTIME} to {preset.engines[0]}",
        )
    if ws.tuning is not None:
        yield from _fits_tuning(ws, preset, listed)
    elif listed is not None and ws.resource is not None:
        yield from _fits_inference(preset, listed, count=ws.resource.count)
    if checks_engine and listed is not None:
        yield from _runs_on(listed, engine, preset)


def _runs_on(listed: InstanceType, engine: Engine, preset: Preset) -> Iterator[Problem]:
    if listed.runs(engine):
        return
    others = [other for other in preset.engines if listed.runs(other)]
    instead = f"set the annotation {labels.RUNTIME} to {others[0]}, or " if others else ""
    yield Problem(
        "C35",
        "resource",
        f"Preset {preset.name} cannot be served by the engine {engine} on {listed.name}: "
        f"the compute capability of its {listed.gpu_model} is below 7.5; "
        f"{instead}choose an instance type with a newer GPU",
    )


def _fits_inference(preset: Preset, listed: InstanceType, *, count: int) -> Iterator[Problem]:
    short = fits(preset, listed, count=count)
    if short is None:
        return
    alone = count > 1 and not preset.distributed and short.kind != "perGPUMemory"
    rule, text = {
        "gpuCount": (
            "C5",
            f"Insufficient number of GPUs: Instance type {listed.name} provides {short.provides}, "
            f"but preset {preset.name} requires at least {short.requires}",
        ),
        "perGPUMemory": (
            "C6",
            f"Insufficient per GPU memory: Instance type {listed.name} provides {short.provides}Gi per GPU, "
            f"but preset {preset.name} requires at least {short.requires}Gi per GPU",
        ),
        "totalGPUMemory": (
            "C7",
            f"Insufficient total GPU memory: Instance type {listed.name} has a total of {short.provides}Gi, "
            f"but preset {preset.name} requires at least {short.requires}Gi",
        ),
    }[short.kind]
    yield Problem(rule, "resource", text + (f"; each of the {count} nodes holds the whole model" if alone else ""))


def _fits_tuning(ws: Workspace, preset: Preset, listed: InstanceType | None) -> Iterator[Problem]:
    assert ws.tuning is not None
    if not preset.tuning:
        yield Problem("C24", "tuning.presetName", f"Preset {preset.name} cannot be tuned")
        return
    if ws.tuning.method not in METHODS:
        return
    needs = preset.tuning.get(ws.tuning.method)
    if needs is None:
        offered = ", ".join(sorted(preset.tuning))
        yield Problem(
            "C24",
            "tuning.presetName",
            f"Preset {preset.name} cannot be tuned with {ws.tuning.method}, only with {offered}",
        )
    elif listed is not None and (short := fits_tuning(needs, listed)) is not None:
        wanted = f"but {ws.tuning.method} tuning of preset {preset.name} requires at least"
        if short.kind == "gpuCount":
            text = f"Insufficient number of GPUs: Instance type {listed.name} provides 0, {wanted} 1"
        else:
            text = (
                f"Insufficient per GPU memory: Instance type {listed.name} provides {short.provides}Gi per GPU, "
                f"{wanted} {short.requires}Gi per GPU"
            )
        yield Problem("C25", "resource", text)
