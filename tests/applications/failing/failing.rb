# ActiveRecord on PostgreSQL, with Ruby's own logger (see ../README.md).

require "json"
require "logger"
require "active_record"

options = ARGV.each_slice(2).to_h { |key, value| [key.delete_prefix("--"), value] }
LOG = Logger.new(options.fetch("log"), progname: options.fetch("name"))

PLACE = {
  adapter: "postgresql",
  host: ENV.fetch("PGHOST"),
  port: ENV.fetch("PGPORT"),
  username: ENV.fetch("PGUSER"),
  password: ENV.fetch("PGPASSWORD"),
  database: ENV.fetch("PGDATABASE"),
  pool: 1,
  checkout_timeout: 0.05,
}.freeze
ActiveRecord::Base.establish_connection(PLACE)

# A database of its own, as an application with two has it.
class Other < ActiveRecord::Base
  self.abstract_class = true
end

def serve
  ActiveRecord::Base.connection_pool.with_connection { |it| it.execute("SELECT 1") }
end

# The pool gives each thread a connection of its own.
def starve
  ActiveRecord::Base.connection_pool.with_connection do
    Thread.new { Thread.current.report_on_exception = false; serve }.join
  end
end

def begin_another
  Other.establish_connection(PLACE)
  Other.connection.execute("SELECT 1")
ensure
  Other.remove_connection
end

# How many of them failed; each is logged as a web framework does.
def several(number)
  number.to_i.times.count do
    yield
    LOG.info("200 /orders")
    false
  rescue StandardError => error
    LOG.error(error)
    true
  end
end

def say(line)
  level, words = line.split(" ", 2)
  LOG.add(Logger.const_get(level == "WARNING" ? "WARN" : level), words)
  nil
end

COMMANDS = {
  "serve" => ->(rest) { several(rest) { serve } },
  "starve" => ->(rest) { several(rest) { starve } },
  "begin" => ->(rest) { several(rest) { begin_another } },
  "say" => method(:say),
}.freeze

serve
$stdout.sync = true
puts JSON.generate({ ready: Process.pid })
$stdin.each_line(chomp: true) do |line|
  name, rest = line.split(" ", 2)
  begin
    puts JSON.generate({ did: COMMANDS.fetch(name).call(rest) })
  rescue StandardError => error
    puts JSON.generate({ failed: "#{error.class}: #{error.message}" })
  end
end
exit!(0)
