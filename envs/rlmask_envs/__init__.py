"""Native games with real masks.."""
