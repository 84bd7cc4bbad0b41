"""What every part may use: errors, files, hashing, process settings."""
