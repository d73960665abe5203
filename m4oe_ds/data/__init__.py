"""Shards to batches: schema, codecs, manifest, deterministic order, streaming, augmentation, collation.

Rank and world size arrive as integers; nothing here knows process groups, models or DICOM.
"""
