"""limelight inside other libraries."""
