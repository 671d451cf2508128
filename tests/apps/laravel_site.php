<?php

// A Laravel site of one file, as in production, whose TrustHosts admits the host that ALLOWED_HOSTS names.

use Illuminate\Config\Repository;
use Illuminate\Contracts\Debug\ExceptionHandler;
use Illuminate\Contracts\Http\Kernel as HttpKernel;
use Illuminate\Foundation\Application;
use Illuminate\Foundation\Bootstrap;
use Illuminate\Http\Request;

require 'Illuminate/autoload.php';

class TrustHosts extends Illuminate\Http\Middleware\TrustHosts
{
    public function hosts()
    {
        return ['^' . preg_quote(getenv('ALLOWED_HOSTS')) . '$'];
    }
}

class Kernel extends Illuminate\Foundation\Http\Kernel
{
    protected $middleware = [TrustHosts::class];
    protected $bootstrappers = [
        Bootstrap\HandleExceptions::class,
        Bootstrap\RegisterFacades::class,
        Bootstrap\RegisterProviders::class,
        Bootstrap\BootProviders::class,
    ];
}

$base = dirname(getenv('WITNESS_FILE')) . '/laravel';
foreach (['views', 'bootstrap/cache'] as $directory) {
    @mkdir("$base/$directory", 0700, true);
}
$app = new Application($base);
$app->instance('config', new Repository([
    'app' => [
        'env' => 'production',
        'debug' => false,
        'locale' => 'en',
        'fallback_locale' => 'en',
        'aliases' => [],
        'providers' => [
            Illuminate\Filesystem\FilesystemServiceProvider::class,
            Illuminate\Translation\TranslationServiceProvider::class,
            Illuminate\View\ViewServiceProvider::class,
        ],
    ],
    'view' => ['paths' => [], 'compiled' => "$base/views"],
    'logging' => ['default' => 'errorlog', 'channels' => ['errorlog' => ['driver' => 'errorlog']]],
]));
$app->detectEnvironment(fn () => 'production');
$app->singleton(HttpKernel::class, Kernel::class);
$app->singleton(ExceptionHandler::class, Illuminate\Foundation\Exceptions\Handler::class);
$app['router']->get('/', fn (Request $request) => ['host' => $request->getHost()]);

$kernel = $app->make(HttpKernel::class);
$request = Request::capture();
$response = $kernel->handle($request);
$response->send();
$kernel->terminate($request, $response);
