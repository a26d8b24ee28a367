"""HTTPS API and page. `models.py` is what it answers, `app.py` the routes, `ping.py` the way to a gateway and back."""
