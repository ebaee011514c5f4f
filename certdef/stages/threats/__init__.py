"""The threats of `certdef certify --threat NAME`: one file a threat, which holds it as THREAT; its name is the file's."""
