"""Files and folders, here and in buckets: paths, whole files, fingerprints, processes."""
