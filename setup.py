"""Builds the native module by calling CMake; compiler flags are in CMakeLists.txt, metadata in pyproject.toml."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One extension, one CMake project; CMAKE_ARGS in the environment is passed through."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        # One build folder an interpreter: CMake caches the Python it found.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        # pip builds in a throw-away environment: the ninja that CMake cached last time is gone the next time.
        ninja = shutil.which("ninja")
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *([f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(output.parent)], check=True)


setup(ext_modules=[Extension("pysoup._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
