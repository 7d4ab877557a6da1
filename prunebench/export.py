"""The command `prune-export`: the network of a finished run as an ONNX file, checked by numbers.

0: written. 1: the network cannot be exported, or the ONNX file computes something else. 2: the command is
wrong.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Of float32 logits, relative to the largest: another library sums in another order."""


class ExportError(RuntimeError):
    """The written file is not what it should be."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `prune-export`."""
    parser = argparse.ArgumentParser(
        "prune-export", description="Write the final network of a finished run for other programs."
    )
    parser.add_argument("run", type=Path, help="result directory, runs/<method>-<model>-<id>")
    parser.add_argument(
        "--onnx",
        type=Path,
        nargs="?",
        const=True,
        required=True,
        metavar="FILE",
        help="write ONNX; default: shrunk.onnx or final.onnx in the result directory",
    )
    parser.add_argument(
        "--masked", action="store_true", help="the network of the original size, also of a structured run"
    )
    options = parser.parse_args(arguments)
    try:
        print(export_onnx(options.run, options.onnx, masked=options.masked))
    except (ValueError, OSError, ExportError) as error:
        print(f"prune-export: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, ExportError) else 2)


def export_onnx(run: Path, file: Path | bool, *, masked: bool) -> str:
    """Write the network as ONNX with a free batch size, run it, and compare its logits.

    Args:
      run: result directory of a finished run.
      file: where to; True for shrunk.onnx or final.onnx in the directory.
      masked: take the network of the original size where there is a smaller one.

    Returns:
      What was written, one line.

    Raises:
      ValueError: if a package is missing or the directory holds no network.
      ExportError: if the network cannot be exported, or the file computes something else; nothing is written.
    """
    _check_packages()
    import torch

    from prunebench.saved import describe_network, load_network

    if masked and not (run / "shrunk.json").exists():
        raise ValueError(f"--masked: has no effect, {run} holds no smaller network; leave it out")
    shrunk = not masked and (run / "shrunk.json").exists()
    network, about = load_network(run, shrunk=shrunk), describe_network(run, shrunk=shrunk)
    path = run / f"{'shrunk' if shrunk else 'final'}.onnx" if file is True else file
    shape = (about["in_channels"], about["image_size"], about["image_size"])
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    unchecked = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write(network, images[:2], unchecked)
            largest = difference(network, unchecked, images)
        except OSError:
            raise
        except Exception as error:  # torch and onnxruntime raise a dozen types for what they cannot do
            first = str(error).strip().partition("\n")[0]
            raise ExportError(f"{path}: this network cannot be exported ({first}); not written") from error
        if not largest <= TOLERANCE:
            raise ExportError(
                f"{path}: its logits differ from the network's by {largest:.2g} of the largest one, more "
                f"than {TOLERANCE:.0e}; not written"
            )
        os.replace(unchecked, path)
    finally:
        unchecked.unlink(missing_ok=True)
    size = path.stat().st_size
    return f"{path}: {size:,} bytes, logits equal to {largest:.1e} of the largest one (batches of 1 and 5)"


def _check_packages() -> None:
    from importlib.util import find_spec

    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(
            f"--onnx: needs {', '.join(missing)}, not installed; pip install 'prunebench[onnx]' "
            '(in a checkout: pip install -e ".[onnx]")'
        )


def _write(network: Any, images: Any, path: Path) -> None:
    """Export with torch's exporter, whose notes on its own progress are left out."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images,),
            str(path),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )


def difference(network: Any, path: Path, images: Any) -> float:
    """Largest difference of the logits, relative to the largest logit, for one image and for all."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for x in (images[:1], images):
        with torch.no_grad():
            expected = network(x)
        got = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        found.append(float((got - expected).abs().max() / expected.abs().max()))
    return max(found)


if __name__ == "__main__":
    main()
