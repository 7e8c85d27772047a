"""What several tests use: tiny encoders and tasks, servers, processes side by side."""
