"""From this machine to Google Cloud: the container's entry point, the job's description, the settings of both."""
