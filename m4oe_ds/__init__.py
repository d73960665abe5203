"""M4oE: multi-modal multi-task mixture of experts for medical imaging, trained with DeepSpeed."""

__version__ = "0.1.0"
