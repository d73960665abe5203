"""From an archive of DICOM files and tables to shards: synthetic archives, conversion, inspection."""
