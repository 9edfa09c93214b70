"""gRPC as all roles use it: servers, channels, who may call, and how errors cross the wire."""
