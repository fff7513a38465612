"""The `mask2former` command: one verb, one spec file, `key=value` overrides.

Only the standard library is imported here, so that `--help` and a wrong verb are answered at once; the verb's own
module brings torch. Exit codes: 0 done, 1 failed, 2 the command or the spec is wrong,
130 and 143 ended by SIGINT and SIGTERM.
"""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

VERBS = {
    "train": "train the network on dataset.train, validating on dataset.val",
    "evaluate": "measure a checkpoint or an ONNX file on dataset.val: mIoU, PQ, AP",
    "inference": "segment the images in dataset.test.img_dir: overlays and structured results",
    "export": "write a checkpoint as an ONNX file and check it in onnxruntime",
    "quantize": "make a model smaller, and measure what that costs",
    "gen_trt_engine": "build a TensorRT engine from an ONNX file (needs the package tensorrt)",
}
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    verb = next((a for a in argv if not a.startswith("-")), None)
    if verb is not None and argv[0] == verb and verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"mask2former: no action {verb!r}.{hint} Actions: {', '.join(VERBS)}.", file=sys.stderr)
        return EXIT_USAGE
    parsed = _parser().parse_intermixed_args(argv)
    _let_memory_grow()
    session = importlib.import_module("mask2former_mcp.engine.session")
    code: int = session.run(parsed.action, parsed.experiment_spec_file, parsed.overrides)
    return code


def _let_memory_grow() -> None:
    """On a GPU, memory in segments that grow: a tenth less is reserved for the same tensors. Read when torch starts."""
    if sys.platform == "linux" and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def _parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:<14} {what}" for name, what in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="mask2former",
        description="Mask2Former: universal image segmentation (panoptic, instance, semantic).",
        epilog=f"actions:\n{verbs}\n\nexample:\n  mask2former train -e spec.yaml results_dir=out train.num_epochs=20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=tuple(VERBS), metavar="action", help=" | ".join(VERBS))
    parser.add_argument("-e", "--experiment_spec_file", type=Path, required=True, metavar="SPEC", help="YAML spec file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="spec values that win over the file's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
