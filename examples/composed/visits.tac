# twistd -ny visits.tac; the port of the web server is 8080, or PORT in the environment.
import os

from visits import make_application

application = make_application(f"tcp:{os.environ.get('PORT', '8080')}:interface=127.0.0.1")
