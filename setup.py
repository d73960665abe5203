"""Package metadata; tool settings live in pyproject.toml, the versions the tests ran with in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "m4oe_ds" / "__init__.py").read_text()).group(1)

SHIPPED = ("configs", "ds_configs", "slurm")
DICOM = ["pydicom>=3.0.2", "python-gdcm>=3.2", "pylibjpeg[openjpeg,rle]>=2.1", "pyjpegls>=1.5"]

setup(
    name="m4oe_ds",
    version=VERSION,
    description="Multi-modal multi-task mixture of experts for medical imaging, trained with DeepSpeed",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The m4oe_ds developers",
    keywords=["mixture of experts", "medical imaging", "multi-modal", "multi-task", "DeepSpeed", "ophthalmology"],
    project_urls={"Paper": "https://openreview.net/forum?id=NJxCpMt0sf"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.14",  # pyjpegls has no wheels for 3.14
    # the folders of the checkout that a wheel carries inside the package, where m4oe_ds/shipped.py finds them
    packages=[
        *find_packages(include=["m4oe_ds", "m4oe_ds.*", "data_tools", "data_tools.*"]),
        *(f"m4oe_ds.shipped_files.{name}" for name in SHIPPED),
    ],
    package_dir={f"m4oe_ds.shipped_files.{name}": name for name in SHIPPED},
    package_data={
        **{f"m4oe_ds.shipped_files.{name}": ["*", "**/*"] for name in SHIPPED},
        "m4oe_ds": ["py.typed"],
        "m4oe_ds.data.cards": ["shipped/*.yaml"],
        "m4oe_ds.compare": ["*.yaml", "*.json"],
        "m4oe_ds.figures": ["*.yaml"],
        "m4oe_ds.report": ["templates/*"],
        "data_tools.convert": ["templates/*"],
    },
    install_requires=[
        "torch>=2.11,<2.16",  # what the tests, or a step of training, ran with: docs/reports/not-run.md
        "torchvision>=0.26,<0.30",
        "deepspeed==0.19.8",  # internal APIs are used behind m4oe_ds/parallel, tested against exactly this version
        "timm>=1.0.20,<1.1",
        "webdataset>=1.0.2",
        "numpy>=2.0,<3",
        "scipy>=1.14",
        "scikit-learn>=1.6",
        "pandas>=2.2",
        "pillow>=10.3",
        "imagecodecs>=2025.3.30",  # 16-bit colour PNG, which Pillow reduces to 8 bits; the compressions of TIFF
        "tifffile>=2025.5.10",  # TIFF of every depth and its pages, of which Pillow reads 8-bit colour only
        "netpbmfile>=2025.1.1",  # PGM and PPM of 10 to 16 bits, which Pillow rescales
        "nibabel>=5.3",  # NIfTI; orientations of volumes
        "blosc2>=3.0",
        "pyyaml>=6.0",
        "safetensors>=0.5",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "tqdm>=4.66",
        "shtab>=1.7",  # completion of m4oe in the shell
        "openpyxl>=3.1",  # GAMMA's labels are a spreadsheet
        *DICOM,
    ],
    extras_require={
        "remote": ["urllib3>=2.2", "boto3>=1.34"],
        "parquet": ["pyarrow>=15"],  # tables of one's own
        "wandb": ["wandb>=0.19"],  # run.trackers
        "mlflow": ["mlflow-skinny>=2.20"],  # run.trackers
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.6"],  # the site of `make docs`
        "test": [
            "urllib3>=2.2",
            "boto3>=1.34",
            "moto[server]>=5",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "soft-moe-pytorch==0.1.9",
            "ruff",
            "mypy",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["m4oe=m4oe_ds.cli:main"]},
)
