"""Builds the native kernels. Without a compiler or PyTorch at hand the install succeeds and says what it runs."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020d000000000000",
]
TARGETS = ("bfloat16", "avx512", "avx2", "plain")


class BuildKernels(build_ext):
    """Adds PyTorch's headers and library, known only where PyTorch is installed; failure is no error."""

    def build_extension(self, ext: Extension) -> None:
        try:
            import torch

            root = Path(torch.__file__).parent
            ext.include_dirs = [str(root / "include"), str(root / "include/torch/csrc/api/include")]
            ext.library_dirs = [str(root / "lib")]
            super().build_extension(ext)
        except Exception as error:
            print(f"normwise: the kernels were not built ({error});", file=sys.stderr)
            print("normwise: everything works, on the reference in plain PyTorch.", file=sys.stderr)


kernels = Extension(
    "normwise._C",
    sources=[f"csrc/{name}.cpp" for name in ("ops", "blend", "lstm", "remember", *(f"target_{t}" for t in TARGETS))],
    depends=[str(path) for path in sorted(Path("csrc").glob("*.h"))],
    libraries=["torch_cpu"],
    extra_compile_args=FLAGS,
    py_limited_api=True,
    optional=True,
)

setup(
    ext_modules=[] if sys.platform == "win32" else [kernels],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
