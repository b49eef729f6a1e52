"""Serve trained models over HTTP: an OpenAI-compatible API for programs on this machine."""
