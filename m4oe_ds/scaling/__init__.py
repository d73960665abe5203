"""Scaling studies on expert count: points measured here, and the plan's model where there are no machines."""
