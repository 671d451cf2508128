# Rails' own check of hosts, as the first middleware of a site; it admits the host that ALLOWED_HOSTS names. DEBUG=1 is
# config.consider_all_requests_local, as in development.

require "action_dispatch"
require "action_view"

home = ->(_) { [200, { "Content-Type" => "application/json" }, ['{"site":"rails"}']] }

if ENV["DEBUG"]
  use(Class.new do
    def initialize(app)
      @app = app
    end

    def call(env)
      @app.call(env.merge("action_dispatch.show_detailed_exceptions" => true))
    end
  end)
end
use ActionDispatch::HostAuthorization, [ENV.fetch("ALLOWED_HOSTS")]
run home
