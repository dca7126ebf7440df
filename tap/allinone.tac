# Everything on one host, on defaults that need no server: twistd -ny tap/allinone.tac
#
# The services are what `twistd novasvc` would run: from NOVASVC_* variables and the files in
# NOVASVC_CONFIG, else the bundled host agent.
import sys

from twisted.application.service import Application
from twisted.logger import ILogObserver

from novasvc.run.plugin import makeService
from novasvc.telemetry.logs import make_observer

application = Application("novasvc")
application.setComponent(ILogObserver, make_observer(sys.stdout))
makeService({}).setServiceParent(application)
