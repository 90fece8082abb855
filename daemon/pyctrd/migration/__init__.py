"""Moving over: what another daemon has, copied over the API that both speak."""
