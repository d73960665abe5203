"""Analyses of trained models: what routing, gradients and representations say about modalities and tasks."""
