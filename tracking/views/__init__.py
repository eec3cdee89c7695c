"""Charts of MLflow's own pages as versioned files: published as saved views, opened by a link."""

from tracking.views.publishing import Published as Published
from tracking.views.publishing import links_of as links_of
from tracking.views.publishing import publish as publish
from tracking.views.publishing import publish_reported as publish_reported
from tracking.views.saved import VIEWS as VIEWS
from tracking.views.saved import View as View
from tracking.views.saved import load as load
