"""The stages, one visible loop each: source, calibrate, selftrain; then evaluate and export."""
