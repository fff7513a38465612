"""Where a job runs: one file each behind one small protocol."""
