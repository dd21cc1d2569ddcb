"""The commands by which a student leaves the house: `fewstep export`, `demo`, `push` and `inspect`."""

import json
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.eval.seeds import BLOCK_IMAGES
from fewstep.pipeline.cli.arguments import Parser, add_run, add_student, check_parent, number, require_run
from fewstep.pipeline.export.names import FORMATS
from fewstep.pipeline.sampling.grammar import STEPS
from fewstep.progress import say

_EXPORT = """Write a student as files for other programs, run each in its own runtime, and hold its images against those
of stock diffusers: RUN/export/parity.json. A file beyond tolerance is not written.

onnx: the graph in float32, for onnxruntime. onnx-fp16: its weights in half the bytes, arithmetic in float32. onnx-int8:
convolutions in int8. pt2: torch.export. aoti: compiled for this processor (AOTInductor; a minute). safetensors: the
folder for the hub, with its card and provenance."""


def export(argv: Sequence[str]) -> None:
    """`fewstep export RUN --formats onnx,pt2`."""
    parser = Parser(prog="fewstep export", description=_EXPORT)
    add_run(parser)
    add_student(parser)
    parser.add_argument("--formats", metavar="A,B", type=_listed(FORMATS), default=["onnx"], help=", ".join(FORMATS))
    steps = _listed([str(each) for each in STEPS])
    parser.add_argument("--steps", metavar="1,2", type=steps, default=["1", "2"], help="a file for each; default: 1,2")
    parser.add_argument(
        "--output", choices=("float32", "uint8"), default="float32", help="[B, C, H, W] in [-1, 1], or uint8 NHWC"
    )
    images = number(int, ge=100, le=BLOCK_IMAGES)
    parser.add_argument("--images", metavar="N", type=images, help="of each file, for its FD; default: eval.images")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, help="default: RUN/export")
    given = parser.parse_args(argv)
    require_run(given.run)
    if given.out is not None:
        check_parent(given.out)
    from fewstep.pipeline.stages import export

    chosen = {"student": given.student, "pixels": given.output == "uint8", "images": given.images, "out": given.out}
    export.export(given.run, given.formats, [int(each) for each in given.steps], **chosen)


def inspect(argv: Sequence[str]) -> None:
    """`fewstep inspect MODEL [--data SOURCE [-o DIR]]`: what a model or an exported file is, and what a model does."""
    description = (
        "What a model is and whether it can be distilled, or what an exported file was made from.\n\nWith --data a "
        "model is loaded too, and measured: how well it denoises these images at each noise level, and how fast."
    )
    parser = Parser(prog="fewstep inspect", description=description)
    what = "a model's folder or hub id; an .onnx, .pt2 or .safetensors that fewstep exported"
    parser.add_argument("model", metavar="MODEL", help=what)
    parser.add_argument("--revision", metavar="NAME", help="of a hub id: a branch, a tag or a commit")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--data", metavar="SOURCE", help="digits, hub:ID, parquet:PATH or imagefolder:PATH")
    for key in (keys := ("split", "image_column", "label_column")):
        text = f"as data.{key} of a run; default: {'train' if key == 'split' else 'found by its type or name'}"
        parser.add_argument(f"--data.{key}", metavar="NAME", dest=key, help=text)
    parser.add_argument(
        "-o", "--out", metavar="DIR", type=Path, help="with --data, a new folder: pictures of what it does"
    )
    given = parser.parse_args(argv)
    values = {key: value for key in keys if (value := getattr(given, key)) is not None}
    path = Path(given.model).expanduser()
    if given.data is None and (values or given.out):
        raise UserError("--data", None, "is needed with --out and --data.KEY: the images to measure a model on")
    if given.data is not None and path.is_file():
        raise UserError("--data", given.data, f"is for a model's folder, and {given.model} is a file: leave it out")
    if given.revision is not None and path.is_file():
        raise UserError("--revision", given.revision, f"is of a hub id, and {given.model} is a file: leave it out")
    if given.out is not None:
        check_parent(given.out)
    if path.is_file():
        from fewstep.pipeline.export.provenance import provenance_of

        facts = provenance_of(path)
    else:
        from fewstep.teachers.describe import describe
        from fewstep.teachers.folder import located

        path = located(given.model, given.revision, "--revision")
        facts = describe(path)
    measured, text = {}, ""
    if given.data is not None:
        from fewstep.pipeline.stages.inspect import measure, measured_text

        measured = measure(path, {"source": given.data, **values}, given.out)
        text = measured_text(measured)
    if given.json:
        print(json.dumps(facts | measured, indent=1))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        say(f"{key.replace('_', ' '):<{width}}  {_shown(value)}")
    if text:
        say(text)


def demo(argv: Sequence[str]) -> None:
    """`fewstep demo RUN -o DIR`: a static page that makes images in the visitor's browser."""
    description = "Write a folder for any static host: a page that makes a student's images in the visitor's browser."
    parser = Parser(prog="fewstep demo", description=description)
    add_run(parser)
    add_student(parser)
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="a new folder")
    what = "onnxruntime-web: npm (fetched by npm pack), or a folder or .tgz of that package"
    parser.add_argument("--runtime", metavar="FROM", default="npm", help=f"{what}; default: npm")
    parser.add_argument("--serve", action="store_true", help="then show it on this machine until Ctrl-C")
    parser.add_argument("--port", metavar="N", type=number(int, ge=0, le=65535), default=8000, help="default: 8000")
    given = parser.parse_args(argv)
    require_run(given.run)
    check_parent(given.out)
    from fewstep.pipeline.stages import demo

    out = given.out.absolute()
    server = demo.listen(out, given.port) if given.serve else None  # first: a port may be in use
    demo.demo(given.run, out, student=given.student, runtime=given.runtime)
    if server is not None:
        demo.serve(server)


def push(argv: Sequence[str]) -> None:
    """`fewstep push RUN REPO_ID`."""
    description = (
        "Upload a student with its card to the Hugging Face hub; log in with `hf auth login`, or set HF_TOKEN."
    )
    parser = Parser(prog="fewstep push", description=description)
    add_run(parser)
    parser.add_argument("repo", metavar="REPO_ID", help="OWNER/NAME")
    add_student(parser)
    parser.add_argument("--private", action="store_true", help="a new repository is private, a public one refused")
    parser.add_argument("--license", metavar="ID", help="for the card, as the hub names it: apache-2.0, cc-by-4.0, ...")
    parser.add_argument("--dry-run", action="store_true", help="only list the files and their sizes")
    given = parser.parse_args(argv)
    require_run(given.run)
    from fewstep.pipeline.stages import push

    options = {"student": given.student, "private": given.private, "licence": given.license, "dry_run": given.dry_run}
    push.push(given.run, given.repo, **options)


def _listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """What reads A,B of some known names."""

    def read(text: str) -> list[str]:
        given = [part.strip() for part in text.split(",")]
        for each in given:
            if each not in known:
                raise ArgumentTypeError(f"{each!r}: must be of {', '.join(known)}")
        return given

    return read


def _shown(value: Any) -> str:  # noqa: ANN401 - of JSON
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) if not any(isinstance(each, list) for each in value) else str(value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
