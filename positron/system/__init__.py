"""Provide what every package uses: files, downloads, terminal output, threads and errors. Imports no other package."""
