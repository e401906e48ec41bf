"""What is measured, a module each. `measure` of a row makes one sample of one subject; the report has their medians."""
