"""The backend: an HTTP service that keeps the providers in line and shows their state."""
