"""What the scripts share: settings, run folders, resumable jobs, processes, errors."""
