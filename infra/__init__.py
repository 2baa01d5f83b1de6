"""What people touch: the command line, MLflow, the doctor and the demo."""
